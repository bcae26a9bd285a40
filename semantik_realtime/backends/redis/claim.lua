-- The number of a job's next attempt. The same token gets the same number.
--
-- KEYS  meta log state fence seen    ARGV  epoch (for a new log), job, token, ttl_ms
-- Gives the attempt; 0 if the topic was deleted.
local meta, fence = KEYS[1], KEYS[4]
local position = redis.call('HMGET', meta, 'epoch', 'deleted')
if position[2] then return 0 end
if not position[1] then
  redis.call('DEL', KEYS[2], KEYS[3], fence, KEYS[5])
  redis.call('HSET', meta, 'epoch', ARGV[1], 'offset', '0', 'chain', '0')
end
local text = redis.call('HGET', fence, ARGV[2])
local attempt, ended_at, token = string.match(text or '0 0 ', '^(%d+) (%d+) (.*)$')
if token == ARGV[3] then return tonumber(attempt) end
attempt = tonumber(attempt) + 1
redis.call('HSET', fence, ARGV[2], string.format('%d 0 %s', attempt, ARGV[3]))
redis.call('PEXPIRE', meta, ARGV[4])
redis.call('PEXPIRE', fence, ARGV[4])
return attempt
