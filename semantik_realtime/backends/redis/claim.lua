-- Count a job's next attempt. The same token gets the same number again.
--
-- KEYS  meta log state fence seen
-- ARGV  epoch (of a new log), job, token, ttl_ms, keys, owner ('': none), open_ms, the job whose
--       own topic it is ('': it is a feed)
-- Return the attempt; 0 if the topic was deleted, -1 if it belongs to another owner.
local meta, fence, owner = KEYS[1], KEYS[4], ARGV[6]
local position = redis.call('HMGET', meta, 'epoch', 'deleted', 'offset', 'owner', 'open')
if position[2] then return 0 end
if owner ~= '' and position[4] and position[4] ~= owner then return -1 end
if not position[1] then
  redis.call('DEL', KEYS[2], KEYS[3], fence, KEYS[5])
  redis.call('HSET', meta, 'epoch', ARGV[1], 'offset', '0', 'chain', '0')
end
if owner ~= '' and not position[4] and (position[3] or '0') == '0' then
  redis.call('HSET', meta, 'owner', owner)
end
local newest = read_attempt(fence, ARGV[2])
if newest[3] == ARGV[3] then return newest[1] end
-- Deleted while the others are counted, so that this job is not among those that are dropped.
redis.call('HDEL', fence, ARGV[2])
drop_stateless(fence, KEYS[3], ARGV[5] - 1)
local attempt = newest[1] + 1
write_attempt(fence, ARGV[2], {attempt, -(tonumber(position[3]) or 0), ARGV[3]})
local expiry, open = ARGV[4], position[5] or ''
if open == '' and ARGV[2] == ARGV[8] and redis.call('HEXISTS', KEYS[3], ARGV[2]) == 1 then
  open = '0'
  redis.call('HSET', meta, 'open', open)
end
if open ~= '' then expiry = open_expiry(ARGV[7], tonumber(open)) end
for i = 1, 5 do redis.call('PEXPIRE', KEYS[i], expiry) end
return attempt
