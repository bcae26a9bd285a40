-- The number of a job's next attempt. The same token gets the same number.
--
-- KEYS  meta log state fence seen    ARGV  epoch (for a new log), job, token, ttl_ms, keys
-- Gives the attempt; 0 if the topic was deleted.
local meta, fence = KEYS[1], KEYS[4]
local position = redis.call('HMGET', meta, 'epoch', 'deleted', 'offset')
if position[2] then return 0 end
if not position[1] then
  redis.call('DEL', KEYS[2], KEYS[3], fence, KEYS[5])
  redis.call('HSET', meta, 'epoch', ARGV[1], 'offset', '0', 'chain', '0')
end
local standing = read_standing(fence, ARGV[2])
if standing[3] == ARGV[3] then return standing[1] end
-- Out of sight while the others are counted: what was claimed just now is not what has to go.
redis.call('HDEL', fence, ARGV[2])
forget_stateless(fence, KEYS[3], ARGV[5] - 1)
local attempt = standing[1] + 1
write_standing(fence, ARGV[2], {attempt, -(position[3] or 0), ARGV[3]})
redis.call('PEXPIRE', meta, ARGV[4])
redis.call('PEXPIRE', fence, ARGV[4])
return attempt
